"""Who is let in, who waits, and whose request is tried again."""
