"""What a study survives: the fault runner, studies on several processes, two workdirs compared."""
