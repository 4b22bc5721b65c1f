#define FS_WIDTH 16
#define FS_NAMESPACE avx512
#include "kernels.inc"
