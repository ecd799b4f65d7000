"""Networks that a file carries as code or as a graph, evaluated operator by operator."""
