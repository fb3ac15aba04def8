/* A CUDA runtime and driver without a GPU: one device whose memory is the host's.

   What PyTorch asks before it has tensors on a card, and what it asks of graphs. Kernels are not
   launched: gpu.py computes them, or nobody does (check_host_code.py). A stream that is being
   recorded refuses to be waited for, as the real one does; how often the host waited is counted. */

#include <driver_types.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DONE return 0
#define FORBIDDEN 900 /* cudaErrorStreamCaptureUnsupported */

static void *recorded;
static unsigned long long recording;
static int spoiled;
static unsigned long long waits;
unsigned long long stand_in_waits(void) { return waits; }

int cudaGetDeviceCount(int *count) { *count = 1; DONE; }
int cudaGetDevice(int *device) { *device = 0; DONE; }
int cudaSetDevice(int device) { DONE; }
int cudaDriverGetVersion(int *version) { *version = 13000; DONE; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; DONE; }
int cudaGetLastError(void) { DONE; }
int cudaPeekAtLastError(void) { DONE; }
const char *cudaGetErrorName(int error) { return "stand-in"; }
const char *cudaGetErrorString(int error) {
  return error == FORBIDDEN ? "operation not permitted when stream is capturing" : "stand-in";
}
int cudaDeviceGetAttribute(int *value, int which, int device) { *value = 1; DONE; }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; DONE; }
int cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; DONE; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *is, int device) {
  memset(is, 0, sizeof *is);
  strcpy(is->name, "stand-in");
  is->major = 9;
  is->totalGlobalMem = 1ull << 37;
  is->multiProcessorCount = 132;
  is->warpSize = 32;
  is->maxThreadsPerBlock = 1024;
  is->maxThreadsPerMultiProcessor = 2048;
  DONE;
}

int cudaMemGetInfo(size_t *left, size_t *all) { *left = *all = 1ull << 37; DONE; }
int cudaMalloc(void **at, size_t bytes) { *at = calloc(1, bytes); DONE; }
int cudaFree(void *at) { free(at); DONE; }

/* the host's memory that a card reads by itself ("pinned"); PyTorch keeps such blocks */
#define MOST 4096
static struct { char *at; size_t bytes; } pinned[MOST];
int cudaHostAlloc(void **at, size_t bytes, unsigned flags) {
  *at = malloc(bytes);
  for (int i = 0; i < MOST; i++)
    if (!pinned[i].at) {
      pinned[i].at = *at;
      pinned[i].bytes = bytes;
      DONE;
    }
  return 2; /* cudaErrorMemoryAllocation */
}
int cudaFreeHost(void *at) {
  for (int i = 0; i < MOST; i++)
    if (pinned[i].at == at) pinned[i].at = 0;
  free(at);
  DONE;
}
int cudaPointerGetAttributes(struct cudaPointerAttributes *is, const void *at) {
  memset(is, 0, sizeof *is);
  is->type = cudaMemoryTypeUnregistered;
  for (int i = 0; i < MOST; i++)
    if (pinned[i].at && (char *)at >= pinned[i].at && (char *)at < pinned[i].at + pinned[i].bytes)
      is->type = cudaMemoryTypeHost;
  is->hostPointer = (void *)at;
  DONE;
}
int cudaHostGetDevicePointer(void **there, void *here, unsigned flags) { *there = here; DONE; }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  waits++;
  memcpy(to, from, bytes);
  DONE;
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  memcpy(to, from, bytes);
  DONE;
}

int cudaMemsetAsync(void *at, int value, size_t bytes, void *stream) {
  memset(at, value, bytes);
  DONE;
}

/* kernels, of which some ask first how large they may be */
int cudaLaunchKernel(const void *kernel, unsigned long long x, unsigned y, unsigned long long z,
                     unsigned w, void **given, size_t shared, void *stream) { DONE; }
int cudaLaunchKernelExC(void *shape, const void *kernel, void **given) { DONE; }
int cudaFuncGetAttributes(struct cudaFuncAttributes *is, const void *kernel) {
  memset(is, 0, sizeof *is);
  is->maxThreadsPerBlock = 1024;
  is->numRegs = 32;
  is->ptxVersion = is->binaryVersion = 90;
  DONE;
}
int cudaFuncSetAttribute(const void *kernel, int which, int value) { DONE; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads,
                                                  size_t shared) { *blocks = 2; DONE; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel,
                                                           int threads, size_t shared,
                                                           unsigned flags) { *blocks = 2; DONE; }

int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  static uintptr_t last = 64;
  *stream = (void *)(last += 64);
  DONE;
}
int cudaStreamQuery(void *stream) {
  int forbidden = recorded && stream == recorded;
  spoiled |= forbidden;
  return forbidden ? FORBIDDEN : 0;
}
int cudaStreamSynchronize(void *stream) { waits++; return cudaStreamQuery(stream); }
int cudaDeviceSynchronize(void) { waits++; return recorded ? FORBIDDEN : 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { DONE; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)64; DONE; }
int cudaEventDestroy(void *event) { DONE; }
int cudaEventRecord(void *event, void *stream) { DONE; }
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { DONE; }
int cudaEventQuery(void *event) { DONE; }
int cudaEventSynchronize(void *event) { waits++; return recorded ? FORBIDDEN : 0; }
int cudaEventElapsedTime(float *milliseconds, void *from, void *to) { *milliseconds = 1; DONE; }

int cudaThreadExchangeStreamCaptureMode(int *mode) { DONE; }
int cudaStreamBeginCapture(void *stream, int mode) {
  recorded = stream;
  recording++;
  spoiled = 0;
  DONE;
}
int cudaStreamEndCapture(void *stream, void **graph) {
  recorded = 0;
  *graph = spoiled ? 0 : (void *)64;
  return spoiled ? 901 /* cudaErrorStreamCaptureInvalidated */ : 0;
}
int cudaStreamIsCapturing(void *stream, int *is) { *is = recorded && stream == recorded; DONE; }
int cudaStreamGetCaptureInfo(void *stream, int *is, unsigned long long *number, void **graph,
                             const void **dependencies, const void **edges, size_t *count) {
  cudaStreamIsCapturing(stream, is);
  if (number) *number = recording;
  DONE;
}
int cudaGraphInstantiate(void **made, void *graph, unsigned long long flags) {
  *made = (void *)64;
  DONE;
}
int cudaGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
  *made = (void *)64;
  DONE;
}
int cudaGraphGetNodes(void *graph, void **nodes, size_t *count) { *count = 1; DONE; }
int cudaGraphLaunch(void *made, void *stream) { DONE; }
int cudaGraphExecDestroy(void *made) { DONE; }
int cudaGraphDestroy(void *graph) { DONE; }

int cudaGetDriverEntryPoint(const char *name, void **entry, unsigned long long flags, int *found) {
  *entry = 0;
  if (found) *found = 1;
  DONE;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version,
                                     unsigned long long flags, int *found) {
  return cudaGetDriverEntryPoint(name, entry, flags, found);
}

/* of the driver, which PyTorch's compiler of kernels is linked to */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  DONE;
}
#define NEVER(name) int name(void) { abort(); }
NEVER(cuCtxGetCurrent)
NEVER(cuCtxSetCurrent)
NEVER(cuDeviceGet)
NEVER(cuDeviceGetAttribute)
NEVER(cuDevicePrimaryCtxRetain)
NEVER(cuFuncGetAttribute)
NEVER(cuFuncSetAttribute)
NEVER(cuFuncSetCacheConfig)
NEVER(cuGetErrorString)
NEVER(cuLaunchCooperativeKernel)
NEVER(cuLaunchKernel)
NEVER(cuLinkAddData_v2)
NEVER(cuLinkComplete)
NEVER(cuLinkCreate_v2)
NEVER(cuModuleGetFunction)
NEVER(cuModuleLoad)
NEVER(cuModuleLoadData)
NEVER(cuModuleLoadDataEx)
NEVER(cuModuleUnload)
NEVER(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NEVER(cuPointerGetAttribute)
NEVER(cuTensorMapEncodeTiled)
