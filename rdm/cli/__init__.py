"""Options of the command line that scripts share."""
