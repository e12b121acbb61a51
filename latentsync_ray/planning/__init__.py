"""What a search would train and take, before anything is trained."""
