/* Wine 8 has no bcryptprimitives.dll, from which Rust's std takes random bytes. This is one
   over the older call for the same. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG len);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T len) {
  const ULONG most = 1u << 30;
  while (len > 0) {
    ULONG part = len > most ? most : (ULONG)len;
    if (!SystemFunction036(data, part)) return FALSE;
    data += part;
    len -= part;
  }
  return TRUE;
}
