DESCRIPTION = {"paths": {}}
