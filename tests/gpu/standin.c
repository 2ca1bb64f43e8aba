/* A stand-in for libnvidia-ml.so.1 and libcuda.so.1: two GPUs (or more) played from a script file.
 *
 * Built by tests/gpu/standin.py and loaded by the real nvidia-ml-py. Only the functions that the probes (and
 * Ray's own agent) call are here; names, arguments and error codes are those of the public NVML reference,
 * https://docs.nvidia.com/deploy/nvml-api/, and of the CUDA driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
 *
 * The script, named by NVML_STANDIN, is read again at every call:
 *     init ok | not_loaded | mismatch | no_permission
 *     hang NAME            the function NAME never returns (init, temperature, events, cuda, ...)
 *     block PATH           the call "temperature" stats PATH, which may block in the kernel
 *     slow MILLISECONDS    every sweep takes at least that long
 *     event SERIAL GPU XID an event, delivered once to a set that was made before it
 *     gpu INDEX key=value ...   uuid, name, bus, memory (MiB), state (ok, lost, absent), temperature, throttle,
 *                               ecc, pending, failed, retired, process (PID:MiB, any number of times), cuda,
 *                               unsupported (calls by their name here: memory,temperature,...)
 * As with the real library, the list of devices is made at nvmlInit and stays until nvmlShutdown.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, SMALL = 7, NOT_LOADED = 9,
       TIMEOUT = 10, LOST = 15, MISMATCH = 18 };
enum { GPUS = 8, PROCESSES = 8, EVENTS = 16 };

typedef struct {
    int present, lost, cuda;
    char uuid[80], name[80], unsupported[160];
    unsigned bus, temperature, pending, failed, retired, processes;
    unsigned long long memory, throttle, ecc;
    struct { unsigned pid; unsigned long long bytes; } process[PROCESSES];
} Gpu;

typedef struct {
    char init[32], hang[4][32], block[256];
    unsigned slow, hangs, events;
    Gpu gpu[GPUS];
    struct { unsigned long serial, gpu, xid; } event[EVENTS];
} Script;

static int initialized, devices;
static unsigned long delivered;
static unsigned indices[GPUS];

static void set(Gpu *gpu, const char *key, const char *value) {
    if (!strcmp(key, "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%s", value);
    else if (!strcmp(key, "name")) snprintf(gpu->name, sizeof gpu->name, "%s", value);
    else if (!strcmp(key, "bus")) gpu->bus = strtoul(value, NULL, 16);
    else if (!strcmp(key, "memory")) gpu->memory = strtoull(value, NULL, 10) << 20;
    else if (!strcmp(key, "temperature")) gpu->temperature = strtoul(value, NULL, 10);
    else if (!strcmp(key, "throttle")) gpu->throttle = strtoull(value, NULL, 0);
    else if (!strcmp(key, "ecc")) gpu->ecc = strtoull(value, NULL, 10);
    else if (!strcmp(key, "pending")) gpu->pending = strtoul(value, NULL, 10);
    else if (!strcmp(key, "failed")) gpu->failed = strtoul(value, NULL, 10);
    else if (!strcmp(key, "retired")) gpu->retired = strtoul(value, NULL, 10);
    else if (!strcmp(key, "unsupported")) snprintf(gpu->unsupported, sizeof gpu->unsupported, "%s", value);
    else if (!strcmp(key, "cuda")) gpu->cuda = atoi(value);
    else if (!strcmp(key, "state")) {
        gpu->lost = !strcmp(value, "lost");
        gpu->present = strcmp(value, "absent") != 0;
    } else if (!strcmp(key, "process") && gpu->processes < PROCESSES) {
        char *end;
        gpu->process[gpu->processes].pid = strtoul(value, &end, 10);
        gpu->process[gpu->processes++].bytes = strtoull(end + 1, NULL, 10) << 20;
    }
}

static Script read_script(void) {
    Script script = {.init = "ok"};
    const char *path = getenv("NVML_STANDIN");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024];
    while (file && fgets(line, sizeof line, file)) {
        char *save, *word = strtok_r(line, " \n", &save), *value = strtok_r(NULL, " \n", &save);
        if (!word || !value) continue;
        if (!strcmp(word, "init")) snprintf(script.init, sizeof script.init, "%s", value);
        else if (!strcmp(word, "hang") && script.hangs < 4)
            snprintf(script.hang[script.hangs++], sizeof script.hang[0], "%s", value);
        else if (!strcmp(word, "block")) snprintf(script.block, sizeof script.block, "%s", value);
        else if (!strcmp(word, "slow")) script.slow = strtoul(value, NULL, 10);
        else if (!strcmp(word, "event") && script.events < EVENTS) {
            char *gpu = strtok_r(NULL, " \n", &save), *xid = strtok_r(NULL, " \n", &save);
            script.event[script.events].serial = strtoul(value, NULL, 10);
            script.event[script.events].gpu = strtoul(gpu ? gpu : "0", NULL, 10);
            script.event[script.events++].xid = strtoul(xid ? xid : "0", NULL, 10);
        } else if (!strcmp(word, "gpu")) {
            unsigned index = strtoul(value, NULL, 10);
            if (index >= GPUS) continue;
            script.gpu[index].present = 1;
            for (char *pair; (pair = strtok_r(NULL, " \n", &save));) {
                char *equals = strchr(pair, '=');
                if (equals) { *equals = 0; set(&script.gpu[index], pair, equals + 1); }
            }
        }
    }
    if (file) fclose(file);
    return script;
}

static void maybe_hang(const Script *script, const char *what) {
    for (unsigned i = 0; i < script->hangs; i++)
        if (!strcmp(script->hang[i], what)) for (;;) pause();
}

/* The device of a handle (index + 1), or the error that the call must return. */
static int device(void *handle, const char *what, Script *script, Gpu **gpu) {
    unsigned long index = (unsigned long)handle - 1;
    if (!initialized) return UNINITIALIZED;
    if (index >= GPUS) return INVALID;
    *script = read_script();
    maybe_hang(script, what);
    *gpu = &script->gpu[index];
    if ((*gpu)->lost || !(*gpu)->present) return LOST;
    return strstr((*gpu)->unsupported, what) ? NOT_SUPPORTED : OK;
}

#define DEVICE(what) Script script; Gpu *gpu; int code = device(handle, what, &script, &gpu); if (code) return code

int nvmlInitWithFlags(unsigned flags) {
    Script script = read_script();
    (void)flags;
    maybe_hang(&script, "init");
    if (!strcmp(script.init, "not_loaded")) return NOT_LOADED;
    if (!strcmp(script.init, "mismatch")) return MISMATCH;
    if (!strcmp(script.init, "no_permission")) return NO_PERMISSION;
    if (!initialized++) {
        devices = 0;
        for (unsigned i = 0; i < GPUS; i++)
            if (script.gpu[i].present) indices[devices++] = i;
    }
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return OK;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case LOST: return "GPU is lost";
    case MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "550.54.15"); return OK; }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { snprintf(text, size, "12.550.54.15"); return OK; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    Script script = read_script();
    if (!initialized) return UNINITIALIZED;
    maybe_hang(&script, "count");
    if (script.slow) usleep(script.slow * 1000);
    *count = devices;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Script script = read_script();
    if (!initialized) return UNINITIALIZED;
    if (index >= (unsigned)devices) return INVALID;
    if (script.gpu[indices[index]].lost) return LOST;
    *handle = (void *)(unsigned long)(indices[index] + 1);
    return OK;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    DEVICE("uuid");
    snprintf(text, size, "%s", gpu->uuid);
    return OK;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    DEVICE("name");
    snprintf(text, size, "%s", gpu->name[0] ? gpu->name : "NVIDIA-Standin");
    return OK;
}

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char text[32]; } Pci;

int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) {
    DEVICE("pci");
    memset(pci, 0, sizeof *pci);
    pci->bus = gpu->bus;
    snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", gpu->bus);
    snprintf(pci->text, sizeof pci->text, "00000000:%02X:00.0", gpu->bus);
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) { /* total, free, used */
    DEVICE("memory");
    memory[0] = gpu->memory;
    memory[2] = 0;
    for (unsigned i = 0; i < gpu->processes; i++) memory[2] += gpu->process[i].bytes;
    memory[1] = memory[0] - memory[2];
    return OK;
}

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *value) {
    struct stat unused;
    DEVICE("temperature");
    (void)sensor;
    if (script.block[0]) stat(script.block, &unused);
    *value = gpu->temperature ? gpu->temperature : 40;
    return OK;
}

int nvmlDeviceGetTemperatureThreshold(void *handle, unsigned which, unsigned *value) {
    DEVICE("threshold");
    *value = which == 0 ? 95 : which == 1 ? 90 : 85; /* shutdown, slowdown, the rest */
    return OK;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *mask) {
    DEVICE("throttle");
    *mask = gpu->throttle;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(void *handle, unsigned type, unsigned counter, unsigned long long *count) {
    DEVICE("ecc");
    *count = type == 1 && counter == 0 ? gpu->ecc : 0; /* uncorrected, volatile */
    return OK;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    DEVICE("remapped");
    *corrected = 0;
    *uncorrected = gpu->pending || gpu->failed;
    *pending = gpu->pending;
    *failed = gpu->failed;
    return OK;
}

int nvmlDeviceGetRetiredPagesPendingStatus(void *handle, unsigned *pending) {
    DEVICE("retired");
    *pending = gpu->retired;
    return OK;
}

typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *list) {
    DEVICE("processes");
    unsigned room = *count;
    *count = gpu->processes;
    if (!gpu->processes) return OK;
    if (!list || room < gpu->processes) return SMALL;
    for (unsigned i = 0; i < gpu->processes; i++)
        list[i] = (Process){gpu->process[i].pid, gpu->process[i].bytes, ~0u, ~0u};
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, Process *list) {
    return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *list) {
    DEVICE("graphics");
    (void)list;
    *count = 0;
    return OK;
}

int nvmlEventSetCreate(void **set) {
    Script script = read_script();
    if (!initialized) return UNINITIALIZED;
    for (unsigned i = 0; i < script.events; i++) /* what happened before there was a set is not told */
        if (script.event[i].serial > delivered) delivered = script.event[i].serial;
    *set = (void *)1;
    return OK;
}

int nvmlEventSetFree(void *set) { (void)set; return OK; }

int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) {
    DEVICE("register");
    (void)types, (void)set;
    return OK;
}

typedef struct { void *device; unsigned long long type, data; unsigned instance, compute; } Event;

int nvmlEventSetWait_v2(void *set, Event *event, unsigned milliseconds) {
    Script script = read_script();
    (void)set, (void)milliseconds;
    if (!initialized) return UNINITIALIZED;
    maybe_hang(&script, "events");
    for (unsigned i = 0; i < script.events; i++)
        if (script.event[i].serial > delivered) {
            delivered = script.event[i].serial;
            *event = (Event){(void *)(script.event[i].gpu + 1), 8, script.event[i].xid, ~0u, ~0u};
            return OK;
        }
    return TIMEOUT;
}

/* --- CUDA: CUDA_VISIBLE_DEVICES names one UUID --- */

static unsigned visible;

int cuInit(unsigned flags) {
    Script script = read_script();
    const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
    (void)flags;
    maybe_hang(&script, "cuda");
    for (visible = 0; visible < GPUS; visible++)
        if (script.gpu[visible].present && wanted && !strcmp(script.gpu[visible].uuid, wanted)) return OK;
    return 100; /* CUDA_ERROR_NO_DEVICE */
}

int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }

int cuDevicePrimaryCtxRetain(void **context, int device) {
    Script script = read_script();
    (void)device;
    *context = (void *)1;
    return script.gpu[visible].cuda; /* 0, or for instance 46, CUDA_ERROR_DEVICE_UNAVAILABLE */
}

int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }

int cuGetErrorName(int code, const char **text) {
    *text = code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 46 ? "CUDA_ERROR_DEVICE_UNAVAILABLE" : "CUDA_ERROR_UNKNOWN";
    return OK;
}
