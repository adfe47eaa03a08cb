"""How the network was made: people's T1 volumes, simulated PET, training, export, evaluation and calibration."""
