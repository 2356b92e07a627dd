"""The command line `keyva`. `main` holds the group and the exit codes; each other module is loaded by the command that needs it."""
