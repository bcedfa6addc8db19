"""What executes schedules: the protocol, the threads of the host, and a simulation."""
