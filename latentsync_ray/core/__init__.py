"""What a training is made of: segments and their keys, transition policies, the protocol of a training."""
