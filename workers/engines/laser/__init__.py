"""LASER's sentence encoders: LASER2, a BiLSTM, and the LASER3 students, transformers for one language each.

An implementation of penstock's own that reads the published files. What it computes was learned from the package
laser_encoders 0.0.2 and fairseq 0.12.2, with which tests compare it.
"""
