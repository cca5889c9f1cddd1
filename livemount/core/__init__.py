"""What every box may use: errors, subprocesses, settings, the words of the domain. Depends on nothing of ours."""
