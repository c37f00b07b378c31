/* config_folder: the directory of --job-config, as a ConfigMap is mounted or as a person fills it:
 *   defaults.json         fields of a request that stand in where a job names none
 *   chat_template.jinja   in place of the model folder's
 *   system.txt            system prompt of chats that bring none
 *   system.BATCH.txt      the same for the chats of one batch
 * Names that begin with a dot are skipped; any other name is an error.
 *
 * Where there is a link `..data`, all is read through the folder that it names at that moment: the
 * kubelet writes a new folder and renames a new link over the old one, so one revision is never
 * mixed with another. */
#ifndef TRANCHE_WORKER_JOB_CONFIG_FOLDER_H
#define TRANCHE_WORKER_JOB_CONFIG_FOLDER_H

#include "engine/json.h"
#include "worker/job/text.h"

enum { CONFIG_FOLDER_BYTES_MAX = 1 << 20 }; /* all files together: what a ConfigMap holds */

/* *out: {"defaults": {...}, "chat_template": "...", "system": {...}}, members only where there is a
 * file; a new reference. E_USAGE names the file and what is wrong; E_RETRY: it changed under the
 * reader, or memory or a descriptor was refused, or another process has a lease on a file. */
int config_folder_read(json_t **out, const char *dir, struct err *err) TR_MUSTCHECK;

/* Appends what tells one state of the directory from another without reading files: the link's
 * target, or where there is no link names, sizes, inodes and times. *linked: there is one. */
void config_folder_mark(struct text *out, const char *dir, bool *linked);

#endif
