"""The processes of a hub: web application, worker, backup, doctor, lock."""
