/* doctor_grace: the time that Kubernetes gives a stopped pod, against the time that its worker
 * takes. As far as the document tells: of a ConfigMap that is not in it nothing is known. */
#include <stdio.h>

#include "worker/commands/doctor.h"
#include "worker/config/config.h"

enum { MARGIN_S = 20, KUBERNETES_S = 30 };
static const int64_t SECOND_NS = 1000000000;

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

/* Of `command` and `args` in one row; NULL behind the last. */
static const char *word_at(const json_t *container, size_t i)
{
    const json_t *command = json_object_get(container, "command");
    const json_t *args = json_object_get(container, "args");
    size_t n = json_array_size(command);
    return json_string_value(i < n ? json_array_get(command, i) : json_array_get(args, i - n));
}

/* The last --NAME=VALUE or --NAME VALUE; NULL: none. */
static const char *flag_of(const json_t *container, const char *name)
{
    const char *word, *found = NULL;
    size_t n = strlen(name);
    for (size_t i = 0; (word = word_at(container, i)) != NULL; i++) {
        if (strncmp(word, "--", 2) != 0 || strncmp(word + 2, name, n) != 0)
            continue;
        if (word[2 + n] == '=')
            found = word + 3 + n;
        else if (word[2 + n] == '\0')
            found = word_at(container, i + 1);
    }
    return found;
}

static const json_t *named(const json_t *list, const char *name)
{
    size_t i;
    json_t *o;
    json_array_foreach(list, i, o)
    {
        if (strcmp(text_of(o, "name"), name) == 0)
            return o;
    }
    return NULL;
}

/* NULL: it is not set; "": its value stands elsewhere. */
static const char *environment_of(const json_t *container, const char *name)
{
    const json_t *e = named(json_object_get(container, "env"), name);
    return e ? text_of(e, "value") : NULL;
}

/* Of that name beside the pod: another namespace's is another. */
static const char *config_map_text(const json_t *pod, const json_t *items, const char *name,
                                   const char *key)
{
    const char *space = text_of(json_object_get(pod, "metadata"), "namespace");
    size_t i;
    json_t *o;
    json_array_foreach(items, i, o)
    {
        const json_t *of = json_object_get(o, "metadata");
        if (strcmp(text_of(o, "kind"), "ConfigMap") == 0 &&
            strcmp(text_of(of, "name"), name) == 0 && strcmp(text_of(of, "namespace"), space) == 0)
            return json_string_value(json_object_get(json_object_get(o, "data"), key));
    }
    return NULL;
}

/* The file of that path in the container, where a ConfigMap is mounted there; or NULL. */
static const char *file_of(const json_t *pod, const json_t *container, const json_t *items,
                           const char *path)
{
    const json_t *volumes = json_object_get(json_object_get(pod, "spec"), "volumes");
    size_t i;
    json_t *mount;
    json_array_foreach(json_object_get(container, "volumeMounts"), i, mount)
    {
        const char *folder = text_of(mount, "mountPath");
        size_t n = strlen(folder);
        if (n == 0 || strncmp(path, folder, n) != 0 || path[n] != '/')
            continue;
        const json_t *map = json_object_get(named(volumes, text_of(mount, "name")), "configMap");
        const char *text = config_map_text(pod, items, text_of(map, "name"), path + n + 1);
        if (text)
            return text;
    }
    return NULL;
}

/* Who wins: as in config.h. False: the document does not say, or the worker would not take it. */
static bool grace_of(int64_t *ns, const json_t *pod, const json_t *container, const json_t *items)
{
    char program[] = "tranche", worker[] = "worker", given[80] = "--grace=";
    char *argv[] = {program, worker, given, NULL}, *none[] = {NULL};
    const char *flag = flag_of(container, "grace");
    const char *path = flag_of(container, "config"), *text = NULL;
    struct config config;
    struct err err = {0};
    if (!flag)
        flag = environment_of(container, "TRANCHE_GRACE");
    if (!path)
        path = environment_of(container, "TRANCHE_CONFIG");
    /* What these hold is not read, and the environment wins over the file. */
    if (!flag && json_array_size(json_object_get(container, "envFrom")) > 0)
        return false;
    if (!flag && path && !(text = file_of(pod, container, items, path)))
        return false;
    if (flag)
        snprintf(given, sizeof given, "--grace=%s", flag);
    int rc = config_open(&config, flag ? 3 : 2, argv, none, &err);
    if (rc == E_OK && text)
        rc = config_file_parse(&config, str_of(text), path, &err);
    if (rc == E_OK)
        *ns = config_int(&config, "grace");
    config_close(&config);
    return rc == E_OK;
}

/* "example.org/llm/tranche:1@sha256:0" is named tranche. */
static bool image_is_ours(const char *image)
{
    const char *slash = strrchr(image, '/'), *name = slash ? slash + 1 : image;
    return memmem(name, strcspn(name, ":@"), "tranche", strlen("tranche")) != NULL;
}

/* `worker` is a word of other programs too. Without a command the image's own runs the args. */
static bool is_worker(const json_t *container)
{
    size_t n = json_array_size(json_object_get(container, "command")), at = 0;
    if (n == 0 && !image_is_ours(text_of(container, "image")))
        return false;
    for (bool ours = n == 0; !ours; at++) {
        const char *word = at < n ? word_at(container, at) : NULL;
        if (!word)
            return false;
        const char *slash = strrchr(word, '/');
        ours = strcmp(slash ? slash + 1 : word, "tranche") == 0;
    }
    const char *verb = word_at(container, at);
    return verb && strcmp(verb, "worker") == 0;
}

void doctor_pod_grace(struct doctor *d, const char *object, const json_t *pod, const json_t *items)
{
    const json_t *spec = json_object_get(pod, "spec");
    const json_t *given = json_object_get(spec, "terminationGracePeriodSeconds");
    int64_t have = json_is_integer(given) ? json_integer_value(given) : KUBERNETES_S, grace;
    size_t i;
    json_t *container;
    json_array_foreach(json_object_get(spec, "containers"), i, container)
    {
        if (!is_worker(container) || !grace_of(&grace, pod, container, items) ||
            have >= grace / SECOND_NS + MARGIN_S)
            continue;
        bool too_late = have <= grace / SECOND_NS;
        doctor_report(
            d, too_late ? VERDICT_FAULT : VERDICT_WARN, "grace",
            "set terminationGracePeriodSeconds 20 s above the worker's grace, or lower "
            "the grace (docs/stopping.md)",
            "%s: terminationGracePeriodSeconds is %lld, the worker takes %lld s to stop%s", object,
            (long long)have, (long long)(grace / SECOND_NS),
            too_late ? ": it is killed before it has parked what runs" : "");
    }
}
