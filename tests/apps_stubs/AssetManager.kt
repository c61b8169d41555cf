package android.content.res

import java.io.Closeable
import java.io.File
import java.io.FileDescriptor
import java.io.InputStream

/** The assets are files of a folder, so that a device test can be run without a device. */
class AssetManager(private val folder: File) {
    fun open(fileName: String): InputStream = File(folder, fileName).inputStream()
    fun openFd(fileName: String): AssetFileDescriptor = throw NotImplementedError(fileName)
}

class AssetFileDescriptor : Closeable {
    val fileDescriptor: FileDescriptor get() = throw NotImplementedError()
    val startOffset: Long get() = throw NotImplementedError()
    val declaredLength: Long get() = throw NotImplementedError()
    override fun close() = Unit
}
