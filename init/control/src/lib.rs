//! The control socket of PID 1: protocol, client and server.
