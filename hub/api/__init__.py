"""`/api/v1`: thin routers over hub.fleet and hub.store. A handler reads, calls one function, and answers; it decides nothing."""
