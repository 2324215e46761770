"""Measures the page in the browser under load, with bad requests among good ones, and while its server is killed."""
