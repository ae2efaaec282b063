"""The message bus: its interface, MQTT 5, and a broker in memory for tests and simulations."""
