-- Sweeps that run on several machines keep their study here (medlight sweep --storage).
CREATE DATABASE optuna;
