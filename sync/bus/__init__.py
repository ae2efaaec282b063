"""The message bus: the interface, an in-memory broker, MQTT 5."""
