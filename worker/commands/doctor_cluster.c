/* doctor_cluster: `kubectl get pods,events,pvc,resourcequota,configmaps -o json | tranche doctor
 * --cluster -`: why pods did not start, or ended. Reads that document alone and asks no cluster;
 * what stands in it is others' text, of any shape. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/commands/doctor_rules.h"

/* LAST_MAX: the kubelet keeps 4096 bytes of a message at most. */
enum { TEXT_MAX = 300, NAME_MAX_CHARS = 120, LAST_MAX = 4097 };

struct cluster {
    struct doctor *d;
    const json_t *items;
    json_t *said; /* {"KIND/NAME": {rule: true}} */
    int pods;     /* in the document */
};

/* ---- reading ---- */

/* Members down a path; NULL where one is missing. */
static const json_t *at(const json_t *from, const char *path)
{
    char name[64];
    while (from && *path) {
        size_t n = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, path);
        from = json_object_get(from, name);
        path += n + (path[n] == '.');
    }
    return from;
}

static const char *text_at(const json_t *from, const char *path)
{
    const char *text = json_string_value(at(from, path));
    return text ? text : "";
}

static bool is_kind(const json_t *item, const char *kind)
{
    return strcmp(text_at(item, "kind"), kind) == 0;
}

/* On one line, printable, cut: a terminal obeys what it is shown. */
static const char *plain(char out[TEXT_MAX], const char *text)
{
    size_t n = 0;
    for (; *text && n + 4 < TEXT_MAX; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == 0x7F) {
            if (n && out[n - 1] != ' ')
                out[n++] = ' ';
        } else {
            out[n++] = c < 0x80 ? (char)c : '?';
        }
    }
    out[n] = '\0';
    if (*text)
        memcpy(out + n, "...", 4);
    return out;
}

/* ---- saying ---- */

/* True the first time for this object and rule. */
static bool first_time(struct cluster *c, const char *object, const void *rule)
{
    char key[32];
    snprintf(key, sizeof key, "%p", rule);
    json_t *of = json_object_get(c->said, object);
    if (!of) {
        of = json_object();
        if (json_object_set_new(c->said, object, of) < 0)
            return true; /* a name that is no UTF-8 cannot come out of JSON */
    }
    if (json_object_get(of, key))
        return false;
    json_object_set_new(of, key, json_true());
    return true;
}

static void say(struct cluster *c, const char *object, const struct cluster_rule *rule,
                const char *message)
{
    char name[TEXT_MAX], text[TEXT_MAX];
    if (first_time(c, object, rule))
        doctor_report(c->d, rule->verdict, rule->check, rule->mend, "%.*s: %s%s%s", NAME_MAX_CHARS,
                      plain(name, object), rule->cause, *message ? ": " : "", plain(text, message));
}

/* A taint that has no rule of its own. Newer schedulers name none: "untolerated taint(s)". */
static bool other_taint(const char *message)
{
    static const char words[] = "untolerated taint";
    static const char *const known[] = {" {nvidia.com/gpu", " {node.kubernetes.io/",
                                        " {node-role.kubernetes.io/control-plane"};
    for (const char *p = message; (p = strstr(p, words)) != NULL;) {
        bool other = true;
        p += sizeof words - 1;
        for (size_t i = 0; i < TR_COUNT(known); i++)
            other = other && strncmp(p, known[i], strlen(known[i])) != 0;
        if (other)
            return true;
    }
    return false;
}

static bool fits(const struct cluster_rule *rule, enum cluster_place place, const char *reason,
                 const char *message)
{
    return rule->place == place && strncmp(reason, rule->reason, strlen(rule->reason)) == 0 &&
           strstr(message, rule->words) != NULL;
}

/* False: no rule knows it. */
static bool judge(struct cluster *c, const char *object, enum cluster_place place,
                  const char *reason, const char *message)
{
    bool found = false;
    for (size_t i = 0; i < cluster_rule_count; i++) {
        const struct cluster_rule *rule = &cluster_rules[i];
        bool any = strcmp(rule->words, CLUSTER_OTHER_TAINT) == 0;
        if (!fits(rule, place, reason, message) || (any && !other_taint(message)))
            continue;
        say(c, object, rule, message);
        found = true;
        if (place != PLACE_SCHEDULING)
            break;
    }
    return found;
}

/* ---- pods ---- */

/* The newest event of this object whose message begins so; "": none. */
static const char *event_text(const struct cluster *c, const char *name, const char *begins)
{
    size_t i;
    json_t *e;
    const char *found = "", *when = "";
    json_array_foreach(c->items, i, e)
    {
        const char *message = text_at(e, "message"), *last = text_at(e, "lastTimestamp");
        if (is_kind(e, "Event") && strcmp(text_at(e, "involvedObject.name"), name) == 0 &&
            strncmp(message, begins, strlen(begins)) == 0 && strcmp(last, when) >= 0) {
            found = message;
            when = last;
        }
    }
    return found;
}

static long long number_at(const json_t *from, const char *path, long long otherwise)
{
    const json_t *v = at(from, path);
    return json_is_integer(v) ? json_integer_value(v) : otherwise;
}

/* "user 65532, group 65532, fsGroup none", as the container or else its pod says. */
static void identity_of(char out[96], const json_t *pod, const json_t *container)
{
    static const char *const names[] = {"runAsUser", "runAsGroup", "fsGroup"};
    char value[3][24], path[64];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "securityContext.%s", names[i]);
        long long v = number_at(container, path, number_at(at(pod, "spec"), path, -1));
        snprintf(value[i], sizeof value[i], v < 0 ? "none" : "%lld", v);
    }
    snprintf(out, 96, "user %s, group %s, fsGroup %s", value[0], value[1], value[2]);
}

static const json_t *container_of(const json_t *pod, const char *name)
{
    static const char *const lists[] = {"spec.containers", "spec.initContainers"};
    size_t i;
    json_t *container;
    for (size_t l = 0; l < TR_COUNT(lists); l++)
        json_array_foreach(at(pod, lists[l]), i, container)
        {
            if (strcmp(text_at(container, "name"), name) == 0)
                return container;
        }
    return NULL;
}

static void judge_out_of_memory(struct cluster *c, const char *object, const json_t *container)
{
    char limit[TEXT_MAX];
    doctor_report(c->d, VERDICT_FAULT, "memory",
                  "raise the limit to what `tranche doctor --model` says, or lower kv-bytes, "
                  "claim-bytes, slots; memory-limit below it leaves someone to record why",
                  "%.*s: killed for memory; the limit is %s", NAME_MAX_CHARS, object,
                  plain(limit, *text_at(container, "resources.limits.memory")
                                   ? text_at(container, "resources.limits.memory")
                                   : "the node's"));
}

static void judge_exit(struct cluster *c, const char *object, int code, const char *message)
{
    char text[TEXT_MAX];
    for (size_t i = 0; i < cluster_exit_count; i++) {
        const struct cluster_exit *e = &cluster_exits[i];
        if (e->code == code) {
            doctor_report(c->d, e->verdict, "exit", e->mend, "%.*s: exit %d: %s%s%s",
                          NAME_MAX_CHARS, object, code, e->cause, *message ? ": " : "",
                          plain(text, message));
            return;
        }
    }
    doctor_report(c->d, VERDICT_FAULT, "exit", "`kubectl logs`: it is none of tranche's codes",
                  "%.*s: exit %d%s%s", NAME_MAX_CHARS, object, code, *message ? ": " : "",
                  plain(text, message));
}

/* A message is the end of a log as a rule. Its last line with words, or the last one that says why
 * a command of ours has failed: the log goes on behind that while it closes. */
static void last_line(char out[LAST_MAX], const char *message)
{
    static const char ours[] = "tranche ";
    const char *last = message, *why = NULL;
    for (const char *p = message; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        if (strncmp(p, ours, sizeof ours - 1) == 0)
            why = p;
        if (strspn(p, " \t\r") < strcspn(p, "\n"))
            last = p;
    }
    last = why ? why : last;
    size_t n = strcspn(last, "\n"), cut = n < LAST_MAX ? 0 : n - (LAST_MAX - 1);
    memcpy(out, last + cut, n - cut);
    out[n - cut] = '\0';
}

static const struct cluster_rule *rule_of_end(const char *reason, const char *line)
{
    for (size_t i = 0; i < cluster_rule_count; i++)
        if (fits(&cluster_rules[i], PLACE_ENDED, reason, line))
            return &cluster_rules[i];
    return NULL;
}

static void judge_end(struct cluster *c, const char *object, const json_t *pod,
                      const json_t *container, const json_t *ended)
{
    const char *reason = text_at(ended, "reason");
    int code = (int)number_at(ended, "exitCode", 0);
    char line[LAST_MAX], who[112] = "; it is ", told[TEXT_MAX + 112];
    if (strcmp(reason, "OOMKilled") == 0) {
        judge_out_of_memory(c, object, container);
        return;
    }
    if (code == 0)
        return;
    last_line(line, text_at(ended, "message"));
    const struct cluster_rule *rule = rule_of_end(reason, line);
    if (rule && strcmp(rule->check, "owner") == 0)
        identity_of(who + strlen(who), pod, container);
    else
        who[0] = '\0';
    /* The end of a long line says why. */
    size_t n = strlen(line), room = TEXT_MAX - 8 - strlen(who);
    snprintf(told, sizeof told, "%s%s%s", n > room ? "..." : "", line + (n > room ? n - room : 0),
             who);
    if (rule)
        say(c, object, rule, told);
    else
        judge_exit(c, object, code, told);
}

static void judge_container(struct cluster *c, const char *object, const json_t *pod,
                            const json_t *status)
{
    const json_t *container = container_of(pod, text_at(status, "name"));
    const json_t *waiting = at(status, "state.waiting");
    const json_t *ended = at(status, "state.terminated");
    const char *reason = text_at(waiting, "reason"), *message = text_at(waiting, "message");
    if (strcmp(reason, "ErrImagePull") == 0 || strcmp(reason, "ImagePullBackOff") == 0) {
        const char *told = event_text(c, text_at(pod, "metadata.name"), "Failed to pull image");
        message = *told ? told : message;
    }
    if (*reason)
        judge(c, object, PLACE_WAITING, reason, message);
    if (!ended)
        ended = at(status, "lastState.terminated");
    if (ended)
        judge_end(c, object, pod, container, ended);
}

static bool pod_is_well(const json_t *pod)
{
    size_t i;
    json_t *condition;
    if (strcmp(text_at(pod, "status.phase"), "Succeeded") == 0)
        return true;
    json_array_foreach(at(pod, "status.conditions"), i, condition)
    {
        if (strcmp(text_at(condition, "type"), "Ready") == 0)
            return strcmp(text_at(condition, "status"), "True") == 0;
    }
    return false;
}

static void judge_scheduling(struct cluster *c, const char *object, const json_t *pod)
{
    size_t i;
    json_t *condition;
    json_array_foreach(at(pod, "status.conditions"), i, condition)
    {
        if (strcmp(text_at(condition, "type"), "PodScheduled") == 0 &&
            strcmp(text_at(condition, "status"), "False") == 0 &&
            !judge(c, object, PLACE_SCHEDULING, text_at(condition, "reason"),
                   text_at(condition, "message"))) {
            char text[TEXT_MAX];
            doctor_report(c->d, VERDICT_FAULT, "scheduling", "`kubectl describe pod`",
                          "%.*s: no node takes it: %s", NAME_MAX_CHARS, object,
                          plain(text, text_at(condition, "message")));
        }
    }
}

static void judge_pod(struct cluster *c, const json_t *pod)
{
    static const char *const lists[] = {"status.initContainerStatuses", "status.containerStatuses"};
    char object[NAME_MAX_CHARS + 8];
    const char *phase = text_at(pod, "status.phase");
    int before = c->d->counts[VERDICT_WARN] + c->d->counts[VERDICT_FAULT];
    size_t i;
    json_t *status;
    snprintf(object, sizeof object, "Pod/%.*s", NAME_MAX_CHARS, text_at(pod, "metadata.name"));
    c->pods++;
    judge_scheduling(c, object, pod);
    judge(c, object, PLACE_POD, text_at(pod, "status.reason"), text_at(pod, "status.message"));
    for (size_t l = 0; l < TR_COUNT(lists); l++)
        json_array_foreach(at(pod, lists[l]), i, status) judge_container(c, object, pod, status);
    bool silent = c->d->counts[VERDICT_WARN] + c->d->counts[VERDICT_FAULT] == before;
    if (pod_is_well(pod) && silent)
        doctor_report(c->d, VERDICT_OK, "pod", NULL, "%s: %s", object,
                      strcmp(phase, "Running") == 0 ? "runs, ready" : "has done its work");
    else if (strcmp(phase, "Running") == 0 && silent)
        doctor_report(c->d, VERDICT_WARN, "probe",
                      "`kubectl port-forward POD 9464`, then `curl localhost:9464/readyz`, or its "
                      "status page, says what it waits for",
                      "%s: runs, and is not ready", object);
    if (strcmp(phase, "Pending") == 0 || strcmp(phase, "Running") == 0)
        doctor_pod_grace(c->d, object, pod, c->items);
}

/* ---- events, claims, quotas ---- */

static const json_t *pod_of(const struct cluster *c, const char *name)
{
    size_t i;
    json_t *item;
    json_array_foreach(c->items, i, item)
    {
        if (is_kind(item, "Pod") && strcmp(text_at(item, "metadata.name"), name) == 0)
            return item;
    }
    return NULL;
}

/* Events outlive what they speak of: of a pod that is gone or well they say nothing, and of one
 * whose containers have begun nothing about its mounts. Its scheduling stands in its conditions. */
static bool is_stale(const struct cluster *c, const json_t *event)
{
    const char *reason = text_at(event, "reason");
    if (strcmp(text_at(event, "involvedObject.kind"), "Pod") != 0)
        return false;
    const json_t *pod = pod_of(c, text_at(event, "involvedObject.name"));
    return !pod || pod_is_well(pod) || strcmp(reason, "FailedScheduling") == 0 ||
           (strncmp(reason, "Failed", 6) == 0 &&
            strcmp(text_at(pod, "status.phase"), "Pending") != 0);
}

static void judge_event(struct cluster *c, const json_t *event)
{
    char object[NAME_MAX_CHARS + 40];
    if (strcmp(text_at(event, "type"), "Normal") == 0 || is_stale(c, event))
        return;
    snprintf(object, sizeof object, "%.30s/%.*s", text_at(event, "involvedObject.kind"),
             NAME_MAX_CHARS, text_at(event, "involvedObject.name"));
    judge(c, object, PLACE_EVENT, text_at(event, "reason"), text_at(event, "message"));
}

static void judge_claim(struct cluster *c, const json_t *claim)
{
    const char *phase = text_at(claim, "status.phase"), *name = text_at(claim, "metadata.name");
    const char *told = event_text(c, name, "");
    char text[TEXT_MAX];
    if (strcmp(phase, "Bound") == 0)
        doctor_report(c->d, VERDICT_OK, "volume", NULL, "PersistentVolumeClaim/%.*s: bound",
                      NAME_MAX_CHARS, name);
    else if (strcmp(phase, "Lost") == 0)
        doctor_report(c->d, VERDICT_FAULT, "volume", "make claim and volume anew, fill it again",
                      "PersistentVolumeClaim/%.*s: its volume is gone", NAME_MAX_CHARS, name);
    else
        doctor_report(c->d, VERDICT_FAULT, "volume",
                      "`kubectl describe pvc`: storage class, size, access mode (a class that "
                      "waits for its first consumer is well)",
                      "PersistentVolumeClaim/%.*s: no volume yet%s%s", NAME_MAX_CHARS, name,
                      *told ? ": " : "", plain(text, told));
}

static void judge_quota(struct cluster *c, const json_t *quota)
{
    const char *name;
    json_t *hard;
    char what[TEXT_MAX], of[TEXT_MAX];
    json_object_foreach((json_t *)(uintptr_t)at(quota, "status.hard"), name, hard)
    {
        const char *used = json_string_value(json_object_get(at(quota, "status.used"), name));
        const char *most = json_string_value(hard);
        if (!used || !most || !doctor_quota_is_full(quota, name, used, most))
            continue;
        doctor_report(c->d, VERDICT_WARN, "quota",
                      "raise it, or keep maxReplicaCount and parallelism below it",
                      "ResourceQuota/%.*s: %.*s is used up: %s of %s", NAME_MAX_CHARS,
                      text_at(quota, "metadata.name"), NAME_MAX_CHARS, plain(what, name), used,
                      plain(of, most));
    }
}

static void judge_all(struct cluster *c)
{
    static const struct {
        const char *kind;
        void (*judge)(struct cluster *, const json_t *);
    } kinds[] = {{"Pod", judge_pod},
                 {"PersistentVolumeClaim", judge_claim},
                 {"ResourceQuota", judge_quota},
                 {"Event", judge_event}};
    size_t i;
    json_t *item;
    for (size_t k = 0; k < TR_COUNT(kinds); k++)
        json_array_foreach(c->items, i, item)
        {
            if (is_kind(item, kinds[k].kind))
                kinds[k].judge(c, item);
        }
    if (c->pods == 0)
        doctor_report(c->d, VERDICT_WARN, "pod",
                      "is there lag? `kubectl describe scaledjob`: KEDA says what it reads",
                      "there are no pods in this document");
}

void doctor_cluster(struct doctor *d, const char *path)
{
    bool standard = strcmp(path, "-") == 0;
    json_error_t why;
    FILE *f = standard ? stdin : fopen(path, "re");
    json_t *document = f ? json_loadf(f, JSON_REJECT_DUPLICATES, &why) : NULL;
    struct cluster c = {.d = d, .said = json_object()};
    CHECK(c.said);
    c.items = json_object_get(document, "items");
    if (!f)
        doctor_report(d, VERDICT_FAULT, "cluster", "name a file, or - for standard input", "%s: %s",
                      path, strerror(errno));
    else if (!json_is_array(c.items))
        doctor_report(d, VERDICT_FAULT, "cluster",
                      "kubectl get pods,events,pvc,resourcequota,configmaps -o json | tranche "
                      "doctor --cluster -",
                      "%s: want a list of objects as JSON, found %s", path,
                      document ? "another document" : why.text);
    else
        judge_all(&c);
    if (f && !standard)
        fclose(f);
    json_decref(document);
    json_decref(c.said);
}
