"""How other processes of a site talk to the serving process: its messages, its client, its errors."""
