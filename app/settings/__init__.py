"""What the server is started with: flags, files, the environment, and what they may hold."""
