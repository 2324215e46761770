"""The page in the browser: a thin layer over the pipeline. It knows nothing that Python and the scripts cannot do."""
