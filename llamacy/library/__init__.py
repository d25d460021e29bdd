"""What `import llamacy` offers: models to talk to, adapters to train, files to make; llamacy itself has the names."""
