#define FS_WIDTH 8
#define FS_NAMESPACE avx2
#include "kernels.inc"
