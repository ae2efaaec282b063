"""`/api/v1`: thin routers over hub.services and hub.store. A handler parses, calls one function and answers."""
