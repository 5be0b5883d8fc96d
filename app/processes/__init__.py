"""The processes of a server and the sockets between them: engines, front ends, signals, the drain."""
