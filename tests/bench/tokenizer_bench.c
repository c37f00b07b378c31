/* tokenizer_bench: opening time, and encode and decode rates of one thread on real text and on
 * texts that are one single run. Each figure is the median of RUNS; every encode run starts with an
 * empty word cache, the vocabulary tables are warm. MB = 1e6 bytes of text. tokenizer_bench
 * [VOCABULARY]        from the repository root, after tools/fixtures.sh */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "engine/tokenizer.h"

enum { RUNS = 7, TEXT_CAP = 16 << 20 };

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *seconds)
{
    qsort(seconds, RUNS, sizeof *seconds, ascending);
    return seconds[RUNS / 2];
}

static struct tokenizer *bench_open(const char *dir)
{
    struct tokenizer *t = NULL;
    double seconds[RUNS];
    for (int run = 0; run < RUNS; run++) {
        struct err err = {0};
        tokenizer_close(t);
        double begin = now();
        if (tokenizer_open(&t, dir, &err) != E_OK) {
            fprintf(stderr, "%s (run tools/fixtures.sh first)\n", err.msg);
            return NULL;
        }
        seconds[run] = now() - begin;
    }
    printf("%-24s %10s %10s %10s\n", "open", "ms", "", "");
    printf("%-24s %10.1f\n\n", dir, median(seconds) * 1e3);
    printf("%-24s %10s %10s %10s %10s\n", "text", "bytes", "tokens", "encode", "decode");
    printf("%-24s %10s %10s %10s %10s\n", "", "", "", "MB/s", "MB/s");
    return t;
}

static void bench_text(const struct tokenizer *t, const char *name, struct str text, int32_t *ids,
                       char *back)
{
    double encode[RUNS], decode[RUNS];
    int64_t n = 0;
    size_t bytes = 0;
    for (int run = 0; run < RUNS; run++) {
        struct err err = {0};
        struct tokenizer_scratch *s = tokenizer_scratch_open(t);
        CHECK(s);
        double begin = now();
        n = tokenizer_encode(t, s, text, 0, ids, TEXT_CAP, &err);
        encode[run] = now() - begin;
        CHECK(n >= 0);
        begin = now();
        bytes = tokenizer_decode(t, ids, (size_t)n, false, back, TEXT_CAP);
        decode[run] = now() - begin;
        tokenizer_scratch_close(s);
    }
    double mb = (double)text.len / 1e6;
    printf("%-24s %10zu %10lld %10.1f %10.1f\n", name, text.len, (long long)n, mb / median(encode),
           (double)bytes / 1e6 / median(decode));
}

int main(int argc, char **argv)
{
    static const char *const files[] = {"moby-dick.txt", "typescript.js", "messages-ru.json",
                                        "messages-zh-cn.json"};
    static const struct {
        const char *name, *unit;
    } runs[] = {{"1 MB of a", "a"},
                {"1 MB of ab", "ab"},
                {"1 MB of spaces", " "},
                {"1 MB of digits", "7"},
                {"1 MB of one CJK letter", "\u4e2d"}};
    char path[256];
    snprintf(path, sizeof path, ".cache/fixtures/%.64s", argc > 1 ? argv[1] : "r1-qwen");
    struct tokenizer *t = bench_open(path);
    char *text = mem_alloc(TEXT_CAP, 1), *back = mem_alloc(TEXT_CAP, 1);
    int32_t *ids = mem_alloc(TEXT_CAP, sizeof *ids);
    if (!t || !text || !back || !ids)
        return 1;
    for (size_t i = 0; i < TR_COUNT(files); i++) {
        snprintf(path, sizeof path, ".cache/fixtures/text/%s", files[i]);
        FILE *file = fopen(path, "rb");
        if (!file)
            continue;
        size_t n = fread(text, 1, TEXT_CAP, file);
        fclose(file);
        bench_text(t, files[i], (struct str){text, n}, ids, back);
    }
    for (size_t i = 0; i < TR_COUNT(runs); i++) {
        size_t len = strlen(runs[i].unit), n = 0;
        for (; n + len <= 1000000; n += len)
            memcpy(text + n, runs[i].unit, len);
        bench_text(t, runs[i].name, (struct str){text, n}, ids, back);
    }
    mem_free(text);
    mem_free(back);
    mem_free(ids);
    tokenizer_close(t);
    return 0;
}
