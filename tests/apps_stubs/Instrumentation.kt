package android.app

import android.content.Context
import android.content.res.AssetManager
import android.os.Bundle
import java.io.File

open class Instrumentation {
    val context: Context get() = Folder("edgekit.tests")
    val targetContext: Context get() = Folder("edgekit.assets")
    fun sendStatus(resultCode: Int, results: Bundle): Unit = throw NotImplementedError("$resultCode $results")

    private class Folder(private val property: String) : Context() {
        override val assets: AssetManager get() = AssetManager(File(System.getProperty(property)))
        override val applicationContext: Context get() = this
    }
}
