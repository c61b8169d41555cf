// As org.tensorflow:tensorflow-lite 2.17 has them (tflite/java in its repository).
package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.util.Map;

public final class Interpreter implements AutoCloseable {
    public static class Options {
        public Options setNumThreads(int numThreads) { throw new UnsupportedOperationException(); }
    }

    public Interpreter(ByteBuffer byteBuffer, Options options) {}
    public void runForMultipleInputsOutputs(Object[] inputs, Map<Integer, Object> outputs) {}
    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs, String signatureKey) {}
    public String[] getSignatureKeys() { throw new UnsupportedOperationException(); }
    public int getInputTensorCount() { throw new UnsupportedOperationException(); }
    public int getOutputTensorCount() { throw new UnsupportedOperationException(); }
    public Tensor getInputTensor(int inputIndex) { throw new UnsupportedOperationException(); }
    public Tensor getOutputTensor(int outputIndex) { throw new UnsupportedOperationException(); }
    @Override public void close() {}
}
