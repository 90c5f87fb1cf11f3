"""A stand-in for fairseq: what laser_encoders asks of it, and nothing else."""

__version__ = "0.12.2+standin.1"
