/* A stand-in for libnvidia-ml.so.1: the functions that toft uses, answering from the text file STUB_FILE, which is read again at
 * every call. One thing a line:
 *
 *   driver VERSION           cuda NUMBER
 *   init CODE                what nvmlInit_v2 answers
 *   epoch NUMBER             another number makes everything answer "uninitialized" until it is initialized again
 *   hang                     nvmlDeviceGetCount_v2 does not return while this is there
 *   card KEY=VALUE...        uuid, name (_ for blanks), minor, pci, total, reserved, used (MiB), busy, temp, slowdown,
 *                            power, limit (mW), sm, mem (MHz), fan, ce, ue, mig (0/1), lost (0/1), xid, xids (counts
 *                            faults told), link (pci address that two NVLinks lead to)
 *   mig KEY=VALUE...         a MIG device of the card before it: uuid, name, gi, ci, total, used
 *   process KEY=VALUE...     of the card or MIG device before it: pid, mib, kind (c, g or m)
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, LOST = 15 };
enum { MOST_CARDS = 16, MOST_PARTS = 7, MOST_PROCESSES = 32 };

struct process { unsigned pid, mib; char kind; };
struct device {
    char uuid[96], name[96], pci[32], link[32];
    unsigned minor, total, reserved, used, busy, temp, slowdown, power, limit, sm, mem, fan, ce, ue, mig, lost, xid, xids, gi, ci;
    unsigned parts, processes;
    struct process process[MOST_PROCESSES];
};
struct state {
    char driver[64];
    int cuda, init, hang;
    unsigned epoch, cards;
    struct device device[MOST_CARDS][1 + MOST_PARTS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct state now;
static int initialized;
static unsigned initialized_in;
static unsigned told[MOST_CARDS];

static void take(struct device *d, char *words) {
    char *rest;
    for (char *word = strtok_r(words, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(word, "uuid")) snprintf(d->uuid, sizeof d->uuid, "%s", value);
        if (!strcmp(word, "pci")) snprintf(d->pci, sizeof d->pci, "%s", value);
        if (!strcmp(word, "link")) snprintf(d->link, sizeof d->link, "%s", value);
        if (!strcmp(word, "name")) {
            snprintf(d->name, sizeof d->name, "%s", value);
            for (char *c = d->name; *c; c++)
                if (*c == '_') *c = ' ';
        }
        struct { const char *key; unsigned *field; } numbers[] = {
            {"minor", &d->minor}, {"total", &d->total}, {"reserved", &d->reserved}, {"used", &d->used}, {"busy", &d->busy},
            {"temp", &d->temp}, {"slowdown", &d->slowdown}, {"power", &d->power}, {"limit", &d->limit}, {"sm", &d->sm},
            {"mem", &d->mem}, {"fan", &d->fan}, {"ce", &d->ce}, {"ue", &d->ue}, {"mig", &d->mig}, {"lost", &d->lost},
            {"xid", &d->xid}, {"xids", &d->xids}, {"gi", &d->gi}, {"ci", &d->ci},
        };
        for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
            if (!strcmp(word, numbers[i].key)) *numbers[i].field = (unsigned)strtoul(value, NULL, 10);
    }
}

/* Reads the file; the lock is held. */
static void look(void) {
    FILE *file = fopen(STUB_FILE, "r");
    char line[1024];
    struct device *last = NULL;
    memset(&now, 0, sizeof now);
    if (!file) { now.init = 9; return; }
    while (fgets(line, sizeof line, file)) {
        if (!strncmp(line, "driver ", 7)) sscanf(line + 7, "%63s", now.driver);
        if (!strncmp(line, "cuda ", 5)) now.cuda = atoi(line + 5);
        if (!strncmp(line, "init ", 5)) now.init = atoi(line + 5);
        if (!strncmp(line, "epoch ", 6)) now.epoch = (unsigned)atoi(line + 6);
        if (!strncmp(line, "hang", 4)) now.hang = 1;
        if (!strncmp(line, "card ", 5) && now.cards < MOST_CARDS) {
            last = &now.device[now.cards++][0];
            take(last, line + 5);
        }
        if (!strncmp(line, "mig ", 4) && now.cards) {
            struct device *card = &now.device[now.cards - 1][0];
            if (card->parts < MOST_PARTS) {
                last = &now.device[now.cards - 1][++card->parts];
                take(last, line + 4);
            }
        }
        if (!strncmp(line, "process ", 8) && last && last->processes < MOST_PROCESSES) {
            struct process *p = &last->process[last->processes++];
            char *at;
            p->kind = 'c';
            if ((at = strstr(line, "pid="))) p->pid = (unsigned)atoi(at + 4);
            if ((at = strstr(line, "mib="))) p->mib = (unsigned)atoi(at + 4);
            if ((at = strstr(line, "kind="))) p->kind = at[5];
        }
    }
    fclose(file);
}

static int ready(void) {
    look();
    if (!initialized || initialized_in != now.epoch) return UNINITIALIZED;
    return OK;
}

static void *handle(unsigned card, unsigned part) { return (void *)(uintptr_t)(0x10000 + card * 64 + part); }

/* The device behind a handle, which may be lost. */
static int find(void *h, struct device **d) {
    int code = ready();
    if (code) return code;
    uintptr_t number = (uintptr_t)h;
    if (number < 0x10000) return INVALID;
    unsigned card = (unsigned)(number - 0x10000) / 64, part = (unsigned)(number - 0x10000) % 64;
    if (card >= now.cards || part > now.device[card][0].parts) return INVALID;
    *d = &now.device[card][part];
    return now.device[card][0].lost ? LOST : OK;
}

#define CALL(name, ...) int name(__VA_ARGS__) { int code; pthread_mutex_lock(&lock);
#define DONE pthread_mutex_unlock(&lock); return code; }
#define OF struct device *d = NULL; if ((code = find(h, &d)) == OK)

/* As the real one, it counts: only the first of several looks for the driver. */
CALL(nvmlInit_v2, void) look(); code = now.init; if (!code && !initialized++) initialized_in = now.epoch; DONE
CALL(nvmlShutdown, void) code = initialized ? OK : UNINITIALIZED; if (initialized) initialized--; DONE
CALL(nvmlSystemGetDriverVersion, char *text, unsigned size) if ((code = ready()) == OK) snprintf(text, size, "%s", now.driver); DONE
CALL(nvmlSystemGetCudaDriverVersion_v2, int *v) if ((code = ready()) == OK) *v = now.cuda; DONE

int nvmlDeviceGetCount_v2(unsigned *count) {
    for (;;) {
        pthread_mutex_lock(&lock);
        int code = ready(), hang = now.hang;
        *count = now.cards;
        pthread_mutex_unlock(&lock);
        if (!hang) return code;
        usleep(20000);
    }
}

CALL(nvmlDeviceGetHandleByIndex_v2, unsigned index, void **h)
    code = ready();
    if (code == OK && index >= now.cards) code = INVALID;
    if (code == OK && now.device[index][0].lost) code = LOST;
    if (code == OK) *h = handle(index, 0);
DONE
CALL(nvmlDeviceGetUUID, void *h, char *text, unsigned size) OF snprintf(text, size, "%s", d->uuid); DONE
CALL(nvmlDeviceGetName, void *h, char *text, unsigned size) OF snprintf(text, size, "%s", d->name); DONE
CALL(nvmlDeviceGetMinorNumber, void *h, unsigned *v) OF *v = d->minor; DONE

struct pci { char legacy[16]; unsigned domain, bus, device, id, sub; char bus_id[32]; };
CALL(nvmlDeviceGetPciInfo_v3, void *h, struct pci *v) OF { memset(v, 0, sizeof *v); snprintf(v->bus_id, 32, "%s", d->pci); } DONE

struct memory { unsigned version; unsigned long long total, reserved, free, used; };
CALL(nvmlDeviceGetMemoryInfo_v2, void *h, struct memory *v) OF {
    v->total = (unsigned long long)d->total << 20;
    v->reserved = (unsigned long long)d->reserved << 20;
    v->used = (unsigned long long)d->used << 20;
    v->free = v->total - v->reserved - v->used;
} DONE

struct utilization { unsigned gpu, memory; };
CALL(nvmlDeviceGetUtilizationRates, void *h, struct utilization *v) OF { v->gpu = d->busy; v->memory = d->busy / 2; } DONE
CALL(nvmlDeviceGetTemperature, void *h, int sensor, unsigned *v) (void)sensor; OF *v = d->temp; DONE
CALL(nvmlDeviceGetTemperatureThreshold, void *h, int kind, unsigned *v) OF { *v = d->slowdown; if (kind != 1) code = NOT_SUPPORTED; } DONE
CALL(nvmlDeviceGetPowerUsage, void *h, unsigned *v) OF { *v = d->power; if (!d->power) code = NOT_SUPPORTED; } DONE
CALL(nvmlDeviceGetEnforcedPowerLimit, void *h, unsigned *v) OF *v = d->limit; DONE
CALL(nvmlDeviceGetClockInfo, void *h, int kind, unsigned *v) OF *v = kind == 2 ? d->mem : d->sm; DONE
CALL(nvmlDeviceGetFanSpeed_v2, void *h, unsigned fan, unsigned *v) (void)fan; OF { *v = d->fan; if (!d->fan) code = NOT_SUPPORTED; } DONE
CALL(nvmlDeviceGetTotalEccErrors, void *h, int kind, int counter, unsigned long long *v) (void)counter; OF *v = kind ? d->ue : d->ce; DONE
CALL(nvmlDeviceGetMigMode, void *h, unsigned *current, unsigned *pending) OF *current = *pending = d->mig; DONE
CALL(nvmlDeviceGetMaxMigDeviceCount, void *h, unsigned *v) OF *v = d->mig ? MOST_PARTS : 0; DONE
CALL(nvmlDeviceGetMigDeviceHandleByIndex, void *h, unsigned index, void **part) OF {
    if (index < d->parts) *part = (char *)h + 1 + index; else code = NOT_FOUND;
} DONE
CALL(nvmlDeviceGetGpuInstanceId, void *h, unsigned *v) OF *v = d->gi; DONE
CALL(nvmlDeviceGetComputeInstanceId, void *h, unsigned *v) OF *v = d->ci; DONE

struct info { unsigned pid; unsigned long long bytes; unsigned gi, ci; };
static int processes(void *h, unsigned *count, struct info *v, char kind) {
    int code;
    pthread_mutex_lock(&lock);
    OF {
        unsigned n = 0, room = *count;
        for (unsigned i = 0; i < d->processes; i++)
            if (d->process[i].kind == kind) {
                if (n < room && v) {
                    struct info told = {d->process[i].pid, (unsigned long long)d->process[i].mib << 20, ~0u, ~0u};
                    v[n] = told;
                }
                n++;
            }
        *count = n;
        if (n > room) code = TOO_SMALL;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, struct info *v) { return processes(h, count, v, 'c'); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *count, struct info *v) { return processes(h, count, v, 'g'); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *h, unsigned *count, struct info *v) { return processes(h, count, v, 'm'); }

CALL(nvmlDeviceGetNvLinkState, void *h, unsigned link, int *v) OF *v = link < 2 && d->link[0]; DONE
CALL(nvmlDeviceGetNvLinkRemotePciInfo_v2, void *h, unsigned link, struct pci *v) (void)link; OF { memset(v, 0, sizeof *v); snprintf(v->bus_id, 32, "%s", d->link); } DONE
CALL(nvmlDeviceGetTopologyCommonAncestor, void *h, void *other, int *v) (void)other; OF *v = 30; DONE

struct event { void *device; unsigned long long type, data; unsigned gi, ci; };
CALL(nvmlEventSetCreate, void **set) if ((code = ready()) == OK) *set = (void *)(uintptr_t)0x77; DONE
int nvmlEventSetFree(void *set) { (void)set; return OK; }
CALL(nvmlDeviceGetSupportedEventTypes, void *h, unsigned long long *v) OF *v = 8; DONE
CALL(nvmlDeviceRegisterEvents, void *h, unsigned long long types, void *set) (void)types; (void)set; OF code = OK; DONE
int nvmlEventSetWait_v2(void *set, struct event *v, unsigned timeout_ms) {
    (void)set;
    for (unsigned waited = 0; waited <= timeout_ms; waited += 10) {
        pthread_mutex_lock(&lock);
        int code = ready();
        for (unsigned i = 0; code == OK && i < now.cards; i++)
            if (now.device[i][0].xids > told[i]) {
                told[i]++;
                struct event event = {handle(i, 0), 8, now.device[i][0].xid, 0, 0};
                *v = event;
                pthread_mutex_unlock(&lock);
                return OK;
            }
        pthread_mutex_unlock(&lock);
        if (code) return code;
        usleep(10000);
    }
    return TIMEOUT;
}
