"""The HTTP/1.1 transport of the server, its header cache and its access log."""
