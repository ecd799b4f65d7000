"""What long work needs: a supervising process, signals, state."""
