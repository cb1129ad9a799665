"""What the pytest plugin does once a suite or its fixture is asked for."""
