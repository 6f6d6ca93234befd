"""What trained predictors reach, on models that packages carry or this repository has."""
