/* vsr.h: restores the frames of a clip with the networks of a bundle, by the schedules that are stored in it.

   A model is an opened bundle, a stream is one clip that goes through it. Frames are pushed in order; each has one
   result, in the same order. docs/native.md has an example, and says what is not covered.

   Functions return a vsr_status; all but VSR_OK and VSR_NONE are failures, of which `error` has a sentence if it is not
   NULL: the caller frees it with vsr_error_free. Memory of images is the caller's, and nothing of it is kept after a
   call has returned. A model may be used by any number of threads at once. A stream serves one call at a time: a
   second one, of another thread or of a callback, is refused with VSR_BUSY. */
#ifndef VSR_H
#define VSR_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define VSR_API __attribute__((visibility("default")))
#else
#define VSR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vsr_status {
  VSR_OK = 0,
  VSR_NONE = 1,      /* no result: not yet from vsr_push, no more from vsr_flush */
  VSR_ARGUMENT = -1, /* an argument or option is not as it is documented */
  VSR_MISSING = -2,  /* no bundle there, or one of its files is not */
  VSR_DAMAGED = -3,  /* the bundle or a schedule contradicts itself, or a file leads out of it */
  VSR_TOO_NEW = -4,  /* of a version that this library does not read, newer or older */
  VSR_SIZE = -5,     /* no schedule is stored for this size, length of the clip, or choice of options */
  VSR_MEMORY = -6,   /* not enough of it */
  VSR_DEVICE = -7,   /* ONNX Runtime, a provider or a network cannot be loaded, or the stream failed before */
  VSR_FRAME = -8,    /* a frame failed; vsr_error_stage and vsr_error_frame say where */
  VSR_BUSY = -9      /* another call is inside of this stream */
} vsr_status;

typedef enum vsr_format { VSR_RGB8 = 0 /* 3 bytes a pixel: red, green, blue, 0 to 255 */ } vsr_format;
typedef enum vsr_memory_kind { VSR_HOST = 0 } vsr_memory_kind;

typedef struct vsr_model vsr_model;
typedef struct vsr_stream vsr_stream;
typedef struct vsr_error vsr_error;

/* An option, UTF-8 text. `threads`: of the CPU for each network, 1 to 1024; as many as there are cores for this process
   where nobody says. `provider`: ONNX Runtime's name of it, without ExecutionProvider: CPU (the default), CUDA,
   TensorRT, OpenVINO, NvTensorRTRTX. `provider.KEY`: an option of that provider. `session.KEY`: an entry of the session's
   configuration, such as session.disable_cpu_ep_fallback. `plugin`: library that brings the provider. `onnxruntime`:
   library to load, a path. Any other is an option of the bundle's family, such as `color` or `seed`; a value that is not
   the default needs a schedule that was written for it where it decides about steps. */
typedef struct vsr_option {
  const char* key;
  const char* value;
} vsr_option;

/* A picture. Set struct_size to sizeof(vsr_image), and what is not used to 0. */
typedef struct vsr_image {
  size_t struct_size;
  void* data;      /* the upper left pixel; of a frame it is only read */
  size_t stride;   /* bytes from a row to the next, at least 3 * width */
  uint32_t width;  /* pixels */
  uint32_t height; /* pixels */
  uint32_t format; /* a vsr_format */
  uint32_t memory; /* a vsr_memory_kind: where data is */
  void* stream;    /* of a device that the picture is on; NULL */
} vsr_image;

/* What frames of a size take. Set struct_size to sizeof(vsr_memory). */
typedef struct vsr_memory {
  size_t struct_size;
  uint64_t buffers;       /* bytes of all buffers of a stream, but for what ONNX Runtime works in */
  uint64_t weights;       /* bytes of the networks' weights, once for a model */
  uint32_t result_width;  /* pixels */
  uint32_t result_height; /* pixels */
  uint32_t window;        /* frames that go through at once; 0 where that is a whole clip */
} vsr_memory;

/* Is passed how far a clip is, in the thread of the call: frames of `total`, 0 where that is not known, in a phase of
   the family; "" of a family without phases. */
typedef void (*vsr_progress_function)(void* user, const char* phase, uint64_t done, uint64_t total);
/* Is passed a line about what is loaded, from any thread. */
typedef void (*vsr_log_function)(void* user, const char* line);

/* Version of the library, e.g. "0.1.0". */
VSR_API const char* vsr_version(void);

/* Has lines passed to `function`, NULL for none; for the whole process. Once it has returned, the former function is
   not called any more. */
VSR_API void vsr_log(vsr_log_function function, void* user);

/* Opens a bundle: reads its manifest and looks at every file. Networks are loaded with the first stream.
   `bundle`: the directory. `options`: `count` of them. VSR_ARGUMENT, VSR_MISSING, VSR_DAMAGED, VSR_TOO_NEW, VSR_DEVICE. */
VSR_API vsr_status vsr_open(const char* bundle, const vsr_option* options, size_t count, vsr_model** model,
                            vsr_error** error);

/* How many times larger the sides of a result are than a frame's; 0 for NULL. */
VSR_API uint32_t vsr_scale(const vsr_model* model);

/* What frames of `width` and `height` pixels take; loads nothing. VSR_ARGUMENT, VSR_SIZE, VSR_DAMAGED. */
VSR_API vsr_status vsr_plan(vsr_model* model, uint32_t width, uint32_t height, vsr_memory* memory, vsr_error** error);

/* Makes a stream for frames of `width` and `height` pixels, and loads the networks that no other stream has loaded.
   VSR_ARGUMENT, VSR_SIZE, VSR_DAMAGED, VSR_MEMORY, VSR_DEVICE. */
VSR_API vsr_status vsr_stream_create(vsr_model* model, uint32_t width, uint32_t height, vsr_stream** stream,
                                     vsr_error** error);

/* Has progress passed to `function`, NULL for none. VSR_ARGUMENT, VSR_BUSY. */
VSR_API vsr_status vsr_stream_progress(vsr_stream* stream, vsr_progress_function function, void* user);

/* Takes the next frame. VSR_OK: `result` was filled, with the oldest result that is ready; its size is the frame's times
   the family's scale (vsr_plan tells it). VSR_NONE: no result yet, `result` is as it was. After VSR_FRAME the stream is
   of no use, but for vsr_flush, which returns what was finished. VSR_ARGUMENT (the frame was not taken), VSR_SIZE,
   VSR_MEMORY, VSR_DEVICE, VSR_FRAME, VSR_BUSY. */
VSR_API vsr_status vsr_push(vsr_stream* stream, const vsr_image* frame, vsr_image* result, vsr_error** error);

/* Ends what was pushed, as if no frame followed: call it until it returns VSR_NONE. VSR_OK: `result` was filled.
   More frames may be pushed afterwards. A family with phases takes its clip through them here; VSR_SIZE where no
   schedule is stored for so many frames. Other failures are those of vsr_push. */
VSR_API vsr_status vsr_flush(vsr_stream* stream, vsr_image* result, vsr_error** error);

/* The next frame begins a new clip: it has no predecessor. Results of earlier ones come first. Failures are those of
   vsr_push. */
VSR_API vsr_status vsr_reset(vsr_stream* stream, vsr_error** error);

/* Frees a stream; NULL is harmless. VSR_BUSY, and it is not freed, while a call is inside. */
VSR_API vsr_status vsr_stream_destroy(vsr_stream* stream);

/* Frees a model; NULL is harmless. Streams that were made of it live on, and its networks with them. */
VSR_API void vsr_close(vsr_model* model);

/* Of an error: a sentence or two in English, UTF-8; its status; the stage of the family, "" where it is of none; the
   frame's number in the clip, from 0, or -1. The texts live as long as the error. */
VSR_API const char* vsr_error_message(const vsr_error* error);
VSR_API vsr_status vsr_error_status(const vsr_error* error);
VSR_API const char* vsr_error_stage(const vsr_error* error);
VSR_API int64_t vsr_error_frame(const vsr_error* error);
/* Frees an error; NULL is harmless. */
VSR_API void vsr_error_free(vsr_error* error);

#ifdef __cplusplus
}
#endif

#endif
