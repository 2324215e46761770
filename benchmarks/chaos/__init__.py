"""What is left of a piece of work whose process was killed, and of the same work once it went on."""
