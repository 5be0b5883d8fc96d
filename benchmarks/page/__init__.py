"""What the chat page costs the browser."""
