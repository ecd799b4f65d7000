"""TorchScript archives: their tensors, their code as text, and the operators that it calls."""
