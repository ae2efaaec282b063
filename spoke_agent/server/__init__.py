"""The serving process: follows `slots.json`, answers the Open Inference Protocol v2, and can crash without the agent.

Start at `app/server.py` (the composition). A request passes `http/transport`, `rest/routes` or `grpc/service`, `handlers/infer`,
`models/batcher` and an engine opened by `models/loader`. `models/model_set.py` knows which version is champion. Other processes
of the site talk to this one through `spoke_agent/server_api/`.
"""
