"""The serving process: follows `slots.json`, answers the Open Inference Protocol v2, and falls alone when it falls.

Start reading at `server.py` (what is put together), then a request's way: `transport` -> `routes` -> `inference_protocol` ->
`scheduler` -> `engine`, and back. `models.py` holds who is champion; `client.py` is how the agent talks to this process.
"""
