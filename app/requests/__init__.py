"""From a JSON object to a typed request, in the words of each dialect."""
