/*
 * An iSCSI initiator that only makes load: `initiator URL NAME KIND BLOCK DEPTH SECONDS FLUSH_EVERY [FILE]`.
 *
 * KIND is randread, randwrite, read or write; BLOCK is in bytes; a FLUSH_EVERY of N sends SYNCHRONIZE CACHE after every
 * N writes, once they are answered, and waits for it. Prints one JSON object: operations, seconds, latencies.
 * KIND replay sends the requests of FILE once, in their order and DEPTH at a time: a line each, `r OFFSET LENGTH` or
 * `w OFFSET LENGTH` in bytes, none longer than BLOCK. It ends with the last one, or fails after SECONDS.
 * Debian's fio has no libiscsi engine, the kernel's initiator needs modules, and QEMU in between costs more than what is
 * measured; with libiscsi itself nothing but the target and the disk behind it is left.
 */
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_DEPTH = 256, MOST_SAMPLES = 1 << 21 };

static struct iscsi_context *iscsi;
static int lun, writes, at_random;
static uint32_t block;
static uint64_t blocks, next_block, state = 88172645463325252u;
static unsigned depth, in_flight, flush_every, since_flush;
static double stop_at;
static uint64_t done, flushes;
static float *samples;

struct slot {
    double started;
    struct scsi_iovec vector; /* libiscsi keeps the address until the answer */
    int write;
};
static struct slot slots[MOST_DEPTH], *free_slots[MOST_DEPTH];
static unsigned free_count;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, iscsi_get_error(iscsi));
    exit(1);
}

struct request {
    uint64_t sector;
    uint32_t length; /* bytes */
    int write;
};
static struct request *recorded;
static uint64_t recorded_count, next_recorded;

static struct request pick(void)
{
    struct request picked = {.length = block, .write = writes};
    if (recorded)
        return recorded[next_recorded++];
    if (!at_random) {
        picked.sector = next_block++ % blocks * (block / 512);
        return picked;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    picked.sector = state % blocks * (block / 512);
    return picked;
}

static int is_over(void)
{
    return recorded ? next_recorded == recorded_count : now() >= stop_at;
}

static void read_recording(const char *path)
{
    FILE *file = fopen(path, "r");
    unsigned long long offset, length, room = 0;
    char kind;
    if (!file) {
        perror(path);
        exit(2);
    }
    while (fscanf(file, " %c %llu %llu", &kind, &offset, &length) == 3) {
        if ((kind != 'r' && kind != 'w') || !length || length > block || offset % 512 || length % 512) {
            fprintf(stderr, "%s: request %llu cannot be sent\n", path, (unsigned long long)recorded_count + 1);
            exit(2);
        }
        if (recorded_count == room) {
            room = room ? 2 * room : 1024;
            recorded = realloc(recorded, room * sizeof *recorded);
        }
        recorded[recorded_count++] =
            (struct request){.sector = offset / 512, .length = length, .write = kind == 'w'};
    }
    if (!recorded_count || !feof(file)) {
        fprintf(stderr, "%s: not a recording\n", path);
        exit(2);
    }
    fclose(file);
}

static void submit(void);

static void flushed(struct iscsi_context *context, int status, void *data, void *private)
{
    (void)context, (void)private;
    if (status != SCSI_STATUS_GOOD)
        fail("SYNCHRONIZE CACHE");
    scsi_free_scsi_task(data);
    since_flush = 0;
    flushes++;
    submit();
}

static void answered(struct iscsi_context *context, int status, void *data, void *private)
{
    struct slot *slot = private;
    (void)context;
    if (status == SCSI_STATUS_GOOD) {
        if (done < MOST_SAMPLES)
            samples[done] = now() - slot->started;
        done++;
    } else {
        fail(slot->write ? "WRITE" : "READ");
    }
    scsi_free_scsi_task(data);
    in_flight--;
    free_slots[free_count++] = slot;
    submit();
}

static void submit(void)
{
    while (free_count && !is_over()) {
        struct scsi_task *task;
        struct slot *slot;
        struct request request;
        if (flush_every && since_flush == flush_every) {
            if (!in_flight && !iscsi_synchronizecache10_task(iscsi, lun, 0, 0, 0, 0, flushed, NULL))
                fail("SYNCHRONIZE CACHE");
            return;
        }
        slot = free_slots[--free_count];
        request = pick();
        slot->started = now();
        slot->vector.iov_len = request.length;
        slot->write = request.write;
        if (request.write) {
            memcpy(slot->vector.iov_base, &state, sizeof state);
            memcpy((char *)slot->vector.iov_base + 8, &done, sizeof done);
            task = iscsi_write16_iov_task(iscsi, lun, request.sector, NULL, request.length, 512, 0, 0, 0, 0, 0,
                                          answered, slot, &slot->vector, 1);
            since_flush++;
        } else {
            task = iscsi_read16_iov_task(iscsi, lun, request.sector, request.length, 512, 0, 0, 0, 0, 0, answered, slot,
                                         &slot->vector, 1);
        }
        if (!task)
            fail("a task");
        in_flight++;
    }
}

static int ascending(const void *one, const void *two)
{
    const float a = *(const float *)one, b = *(const float *)two;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    struct iscsi_url *url;
    struct scsi_task *task;
    struct scsi_readcapacity16 *capacity;
    double began, seconds;
    uint64_t count;
    unsigned each;

    if (argc != 8 + !strcmp(argc > 3 ? argv[3] : "", "replay")) {
        fprintf(stderr, "usage: initiator URL NAME KIND BLOCK DEPTH SECONDS FLUSH_EVERY [FILE]\n");
        return 2;
    }
    iscsi = iscsi_create_context(argv[2]);
    url = iscsi_parse_full_url(iscsi, argv[1]);
    if (!url)
        fail("the URL");
    writes = strstr(argv[3], "write") != NULL;
    at_random = !strncmp(argv[3], "rand", 4);
    block = strtoul(argv[4], NULL, 10);
    depth = strtoul(argv[5], NULL, 10);
    flush_every = strtoul(argv[7], NULL, 10);
    lun = url->lun;
    if (!block || block % 512 || !depth || depth > MOST_DEPTH) {
        fprintf(stderr, "block or depth is out of range\n");
        return 2;
    }
    if (argc == 9)
        read_recording(argv[8]);
    if (url->user[0])
        iscsi_set_initiator_username_pwd(iscsi, url->user, url->passwd);
    iscsi_set_targetname(iscsi, url->target);
    iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(iscsi, ISCSI_HEADER_DIGEST_NONE);
    iscsi_set_noautoreconnect(iscsi, 1);
    if (iscsi_full_connect_sync(iscsi, url->portal, lun))
        fail("login");
    task = iscsi_readcapacity16_sync(iscsi, lun);
    if (!task || task->status != SCSI_STATUS_GOOD || !(capacity = scsi_datain_unmarshall(task)))
        fail("READ CAPACITY");
    blocks = (capacity->returned_lba + 1) * capacity->block_length / block;
    scsi_free_scsi_task(task);

    state ^= (uint64_t)time(NULL) << 20;
    samples = malloc(MOST_SAMPLES * sizeof *samples);
    for (each = 0; each < depth; each++) {
        slots[each].vector.iov_base = malloc(block);
        slots[each].vector.iov_len = block;
        memset(slots[each].vector.iov_base, 0x5a + each, block);
        free_slots[free_count++] = &slots[each];
    }
    /* A new nexus is told of resets, by the first commands of any kind but inquiries: not a failure of the disk. */
    for (each = 0; each < 64; each++) {
        int status;
        task = iscsi_read16_sync(iscsi, lun, 0, 512, 512, 0, 0, 0, 0, 0);
        if (!task)
            fail("the first READ");
        status = task->status;
        scsi_free_scsi_task(task);
        if (status == SCSI_STATUS_GOOD)
            break;
    }
    began = now();
    stop_at = began + strtod(argv[6], NULL);
    submit();
    while (in_flight || !is_over()) {
        struct pollfd poller = {.fd = iscsi_get_fd(iscsi), .events = iscsi_which_events(iscsi)};
        if (poll(&poller, 1, 30000) <= 0)
            fail("no answer in 30 s");
        if (iscsi_service(iscsi, poller.revents))
            fail("the connection");
        if (recorded && now() >= stop_at) {
            fprintf(stderr, "the replay does not end in time\n");
            return 1;
        }
    }
    seconds = now() - began;
    count = done < MOST_SAMPLES ? done : MOST_SAMPLES;
    if (!count)
        fail("nothing was answered");
    qsort(samples, count, sizeof *samples, ascending);
    printf("{\"operations\": %llu, \"flushes\": %llu, \"seconds\": %.6f, \"p50\": %.7f, \"p99\": %.7f}\n",
           (unsigned long long)done, (unsigned long long)flushes, seconds, samples[count / 2], samples[count * 99 / 100]);
    iscsi_logout_sync(iscsi);
    iscsi_destroy_url(url);
    iscsi_destroy_context(iscsi);
    return 0;
}
