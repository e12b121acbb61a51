"""What a training step of `configs/256` costs on a GPU: counted without one (`count`), measured on one (`bench`)."""
