// Every x86-64 has SSE2; elsewhere (or with FS_SCALAR, for tests) the scalar code is left to the compiler.
#if defined(__x86_64__) && !defined(FS_SCALAR)
#define FS_WIDTH 4
#else
#define FS_WIDTH 1
#endif
#define FS_NAMESPACE baseline
#include "kernels.inc"
