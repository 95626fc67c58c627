"""Starting the processes of a training, keeping them alive, and writing job files that do."""
