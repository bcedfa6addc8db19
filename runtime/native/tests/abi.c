/* A C99 caller of another version, and one that makes mistakes: a status and a sentence, never a crash.

   vsr_abi BUNDLE WIDTH HEIGHT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vsr.h"

#define EXPECT(holds)                                         \
  do {                                                        \
    if (!(holds)) {                                           \
      fprintf(stderr, "line %d: not %s\n", __LINE__, #holds); \
      exit(1);                                                \
    }                                                         \
  } while (0)

/* As a newer header may have it. */
typedef struct longer_image {
  vsr_image image;
  void* more;
} longer_image;

static vsr_error* error;

static int refused(vsr_status status, vsr_status expected) {
  const int fits = status == expected && error != NULL && strlen(vsr_error_message(error)) > 10 &&
                   vsr_error_status(error) == expected;
  if (!fits) fprintf(stderr, "status %d: %s\n", (int)status, vsr_error_message(error));
  vsr_error_free(error);
  error = NULL;
  return fits;
}

int main(int count, char** arguments) {
  const vsr_option wrong[] = {{"threads", "0"}}, unknown[] = {{"no such", "1"}}, none[] = {{NULL, "1"}};
  const vsr_option library[] = {{"onnxruntime", "/no/such/library.so"}}, provider[] = {{"provider", "NoSuch"}};
  vsr_model* model = NULL;
  vsr_model* other = NULL;
  vsr_stream* stream = NULL;
  vsr_memory memory;
  longer_image frame, result;
  uint32_t width, height, scale;
  EXPECT(count == 4);
  width = (uint32_t)atoi(arguments[2]);
  height = (uint32_t)atoi(arguments[3]);
  EXPECT(strlen(vsr_version()) > 2);
  EXPECT(refused(vsr_open("/no/such/bundle", NULL, 0, &model, &error), VSR_MISSING));
  EXPECT(refused(vsr_open(NULL, NULL, 0, &model, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_open(arguments[1], wrong, 1, &model, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_open(arguments[1], unknown, 1, &model, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_open(arguments[1], none, 1, &model, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_open(arguments[1], library, 1, &model, &error), VSR_DEVICE));
  EXPECT(vsr_open(arguments[1], NULL, 0, &model, NULL) == VSR_OK);
  EXPECT(vsr_open(arguments[1], provider, 1, &other, &error) == VSR_OK);
  EXPECT(refused(vsr_stream_create(other, width, height, &stream, &error), VSR_DEVICE));
  vsr_close(other);
  scale = vsr_scale(model);

  memset(&memory, 0, sizeof memory);
  EXPECT(refused(vsr_plan(model, width, height, &memory, &error), VSR_ARGUMENT)); /* no struct_size */
  memory.struct_size = sizeof memory;
  EXPECT(refused(vsr_plan(model, 0, height, &memory, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_plan(model, width + 1, height, &memory, &error), VSR_SIZE));
  EXPECT(vsr_plan(model, width, height, &memory, &error) == VSR_OK);
  EXPECT(memory.result_width == width * scale && memory.result_height == height * scale && memory.buffers > 0);
  EXPECT(refused(vsr_stream_create(model, width, height + 1, &stream, &error), VSR_SIZE));
  EXPECT(stream == NULL);
  EXPECT(vsr_stream_create(model, width, height, &stream, &error) == VSR_OK);
  vsr_close(model); /* the stream lives on */

  memset(&frame, 0, sizeof frame);
  frame.image.struct_size = sizeof frame.image;
  frame.image.width = width;
  frame.image.height = height;
  frame.image.stride = (size_t)3 * width;
  frame.image.data = calloc((size_t)3 * width, height);
  result = frame;
  result.image.width *= scale;
  result.image.height *= scale;
  result.image.stride *= scale;
  result.image.data = calloc((size_t)3 * width * scale, (size_t)height * scale);
  frame.image.struct_size = sizeof frame.image - 8; /* an older caller, whose image has no stream */
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  frame.image.struct_size = sizeof frame; /* a newer one, which uses what this library does not know */
  frame.more = &frame;
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  frame.image.struct_size = (size_t)-1;
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  frame.image.struct_size = sizeof frame; /* and one that does not use it */
  frame.more = NULL;
  EXPECT(vsr_push(stream, &frame.image, &result.image, &error) >= 0);
  frame.image.format = 9;
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  frame.image.format = VSR_RGB8;
  frame.image.memory = 1;
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  frame.image.memory = VSR_HOST;
  frame.image.stride -= 1;
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  frame.image.stride += 1;
  result.image.width -= 1;
  EXPECT(refused(vsr_push(stream, &frame.image, &result.image, &error), VSR_ARGUMENT));
  result.image.width += 1;
  EXPECT(refused(vsr_push(stream, NULL, &result.image, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_push(stream, &frame.image, NULL, &error), VSR_ARGUMENT));
  EXPECT(refused(vsr_push(NULL, &frame.image, &result.image, &error), VSR_ARGUMENT));
  while (vsr_flush(stream, &result.image, &error) == VSR_OK) {
  }
  EXPECT(vsr_reset(stream, NULL) == VSR_OK);
  EXPECT(vsr_stream_destroy(stream) == VSR_OK);
  EXPECT(vsr_stream_destroy(NULL) == VSR_OK);
  vsr_close(NULL);
  vsr_error_free(NULL);
  EXPECT(vsr_error_frame(NULL) == -1 && *vsr_error_message(NULL) == 0);
  free(frame.image.data);
  free(result.image.data);
  return 0;
}
