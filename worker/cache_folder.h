/* cache_folder: where this user's caches lie: $XDG_CACHE_HOME/tranche, else ~/.cache/tranche. */
#ifndef TRANCHE_WORKER_CACHE_FOLDER_H
#define TRANCHE_WORKER_CACHE_FOLDER_H

/* Its path, the folder made on first use; NULL where there is no home. For the process's life. */
const char *cache_folder(void);

#endif
